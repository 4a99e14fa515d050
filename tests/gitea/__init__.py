"""A real forge for the tests: Gitea, built from its Go module and run on loopback with a folder of its own."""
