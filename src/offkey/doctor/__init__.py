"""Proof that the sites of a model are what they are called.

:func:`doctor` runs every check on the model itself, and its report says what does not hold, where,
and what would explain it.
"""

from offkey.doctor.report import DoctorReport, doctor
from offkey.models.proofs import Check

__all__ = ["Check", "DoctorReport", "doctor"]
