"""The reverse proxy before the application: reads stay here, writes go to the primary (docs/proxy.md)."""
