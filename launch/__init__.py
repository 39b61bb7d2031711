"""Launch scripts, site profiles and the virtual cluster; nothing in the library imports from here."""
