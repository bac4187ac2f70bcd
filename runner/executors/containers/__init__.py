"""The executors `podman` and `docker`: commands in warm containers of an image that needs no change."""
