"""What a change does, said exactly: requests whose outcome changes, access that is gained or lost, and what is untouched.

`report.review` takes two snapshots and the registry and gives a `Report`; `routes` and `access` find the classes of requests
with another outcome, `space` is the algebra they use, `words` and `formats` say it to people and to machines.
"""
