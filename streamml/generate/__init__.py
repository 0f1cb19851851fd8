"""Seeded streams to try the library on: no broker, no data set, the same bytes every time."""

from streamml.generate.payments import PaymentOptions, Payments, labels, payments, payments_with_truth, workload

__all__ = ["PaymentOptions", "Payments", "labels", "payments", "payments_with_truth", "workload"]
