"""Ray: joining a cluster, running trials through Tune, and sharing the cluster with other studies."""
