"""Attacks: patients named in headers, kills, full disks, commands that share a folder, hostile names and files."""
