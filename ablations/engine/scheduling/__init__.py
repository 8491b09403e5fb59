"""Ray: joining a cluster, running trials through Tune, and sharing the cluster with other studies.

Private API of Ray is used in `ray_internals` only.
"""
