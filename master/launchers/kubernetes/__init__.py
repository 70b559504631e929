"""Workers as Jobs of Kubernetes."""
