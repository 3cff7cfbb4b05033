"""The door to the store (Redis or Valkey, 7.0 and later): the only room that knows redis-py."""
