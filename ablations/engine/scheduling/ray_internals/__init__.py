"""All private Python API of Ray that this project uses. No other module imports or replaces a private name of Ray.

Ray may change such a name in any release. Each `Feature` therefore lists the parts that it needs, as Ray 2.60 has them. Before the
first use, `compatibility.is_available` checks that each part exists, takes the known parameters and, if this project replaces it,
is still called by Ray itself. Otherwise the feature is off, one line on stderr says so, and the study runs without it.

These modules import nothing of this project outside their package, and import Ray only when a feature is used. Their callers make
all decisions.
"""
