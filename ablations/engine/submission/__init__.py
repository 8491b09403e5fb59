"""Submission of one study: plan, train, track and report."""
