"""The nouns of the cluster: frozen records for the store, for memory and for tests."""
