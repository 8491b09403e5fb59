"""The checks of `ablations doctor`.

Each module measures one property on every node (`measure`) and turns the measurements into a verdict with a remedy (`evaluate`).
`checklist` runs all of them, `preflight` the cheap ones before each study on several nodes.
"""
