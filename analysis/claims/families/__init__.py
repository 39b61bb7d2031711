"""The claims, a module for each family. A module here with ``CLAIMS`` adds its claims: there is nothing to register."""
