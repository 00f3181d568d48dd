"""Pictures and figures of volumes and of what was made of them."""
