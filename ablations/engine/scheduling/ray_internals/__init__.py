"""All private API of Ray that this project uses. No other module imports, reads or replaces a private part of Ray.

Ray may change such a part in any release. So each `Feature` lists the parts that it needs, as Ray 2.60 has them.
`compatibility.is_available` checks them before the first use: a part exists, takes the known parameters and, if it is replaced
here, is still what Ray itself calls. Otherwise the feature is off, one line on stderr says so, and the study runs without it.

These modules import nothing of this project, and no Ray until a feature is used. Decisions come from their callers.
"""
