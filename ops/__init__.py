"""Runs Sound Sentry on other machines: images, compose, Kubernetes, monitoring. The product never imports it."""
