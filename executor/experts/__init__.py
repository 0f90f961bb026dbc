"""The feed-forward networks of a rank's slots, and the back ends that compute them."""
