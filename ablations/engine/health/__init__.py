"""What can be wrong with a cluster: each module measures one thing on its nodes and judges what was measured."""
