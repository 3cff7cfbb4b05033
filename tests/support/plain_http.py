"""Clients of servers on loopback, where nobody speaks TLS."""

import ssl

#: For `verify`: else each client reads the machine's certificates, 50 ms of the one loop that a test shares with all it tests.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
