"""The field's headline claims as runnable tests: what is claimed, what is measured here, and whether it holds here.

``claim`` says what a claim is and how it is judged, ``families`` hold the claims, ``registry`` finds them, ``folders``
and ``evaluate`` apply them to runs, ``show`` and ``page`` show them. Measuring is ``experiments.claims``' business.
"""
