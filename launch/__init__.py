"""Launchers that start and supervise training runs on clouds and clusters."""
