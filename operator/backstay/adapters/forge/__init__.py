"""Forges: one comment on a pull request, edited in place, and the status of a commit. GitHub, Gitea and Forgejo, GitLab."""

from backstay.adapters.forge.client import Forge, ForgeRefused, ForgeUnavailable, Kind, Place
from backstay.adapters.forge.desk import Desk
from backstay.adapters.forge.statuses import StatusNotifier

__all__ = ["Desk", "Forge", "ForgeRefused", "ForgeUnavailable", "Kind", "Place", "StatusNotifier"]
