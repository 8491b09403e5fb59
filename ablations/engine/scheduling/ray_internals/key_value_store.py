"""Ray's key-value store. The head of a cluster stores it, and every process of the cluster can reach it.

The public alternative, a named detached actor, costs one more process on the head: docs/decisions.md has the numbers.
"""

from ablations.engine.scheduling.ray_internals.compatibility import Feature, Part, needs

KEY_VALUE_STORE = Feature(
    "early stop of hung processes, causes of crashes, sharing the cluster with other studies, waiting for nodes of an autoscaler",
    (
        Part("ray.experimental.internal_kv:_internal_kv_put", "key, value, overwrite=True, *, namespace=None"),
        Part("ray.experimental.internal_kv:_internal_kv_get", "key, *, namespace=None"),
        Part("ray.experimental.internal_kv:_internal_kv_del", "key, *, del_by_prefix=False, namespace=None"),
        Part("ray.experimental.internal_kv:_internal_kv_list", "prefix, *, namespace=None"),
    ),
)


@needs(KEY_VALUE_STORE, otherwise=None)
def kv_put(key: str, value: str) -> None:
    """Store a value, replacing an earlier one."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, overwrite=True)


@needs(KEY_VALUE_STORE, otherwise=None)
def kv_get(key: str, namespace: str | None = None) -> bytes | None:
    """Return the value of a key; None if there is none. Ray itself has keys in several namespaces."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key, namespace=namespace)
    return value


@needs(KEY_VALUE_STORE, otherwise=None)
def kv_delete(key: str) -> None:
    """Delete a key if it exists."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)


@needs(KEY_VALUE_STORE, otherwise=[])
def kv_keys(prefix: str) -> list[str]:
    """Return all keys that begin with a prefix."""
    from ray.experimental.internal_kv import _internal_kv_list

    return [key.decode() for key in _internal_kv_list(prefix)]
