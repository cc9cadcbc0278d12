"""A user's own images and models: settings, methods, jobs, reports."""
