"""The rectified flow: its mathematics, each part testable alone (spec/model.md, Rectified flow)."""
