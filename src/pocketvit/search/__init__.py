"""Which layers must stay float for a file to keep its accuracy, and which precision is worth shipping."""

from .budget import Found, Trial, within_budget
from .recommend import Recommendation, recommend
from .sensitivity import Sensitivity, sensitivities

__all__ = ["Found", "Recommendation", "Sensitivity", "Trial", "recommend", "sensitivities", "within_budget"]
