"""Where arrays live: the device mesh, the table of sharding rules, the report of devices."""
