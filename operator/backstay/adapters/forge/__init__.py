"""Forges: one comment on a pull request, edited in place, and the status of a commit. GitHub, Gitea and Forgejo, GitLab."""

from backstay.adapters.forge.client import Forge, ForgeRefused, ForgeUnavailable, Kind, Place

__all__ = ["Forge", "ForgeRefused", "ForgeUnavailable", "Kind", "Place"]
