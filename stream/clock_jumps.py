"""Time stamps that jump: which are doubted, and when a jump is believed. A pure fold: no clock, no store, no broker.

A row farther than `max_jump` slots from its entity's newest one, ahead or behind, is refused, unless it is the last of
`jump_rows` such rows in a row, each after the one before it and none farther than that from it. Time line for
max_jump 100 and jump_rows 3 (x refused):

    rows     7 8 9000 9 10 5000 5001 11 5002 5003 5004 5005 7 8 9
    verdict  . . x    . .  x    x    .  x    x    .    .    x x .    5004 and the last 9 begin new lives
"""

from stream.errors import ContractError
from stream.grid import Geometry


class Doubt:
    """The rows of one entity that were refused since its last believable one. slot: the newest of them."""

    __slots__ = ("_geometry", "rows", "slot")

    def __init__(self, geometry: Geometry) -> None:
        """Doubt nothing yet."""
        self._geometry = geometry
        self.slot = self.rows = 0

    def dispelled_by(self, slot: int, newest: int) -> bool:
        """Say whether a row proves that the clock has jumped; False for one that is near the newest row.

        Raises ContractError for a row that is far from it and proves nothing yet.
        """
        farthest = self._geometry.longest_step
        if -farthest <= slot - newest <= farthest:
            if self.rows:
                self.slot = self.rows = 0
            return False
        if self.rows and abs(slot - self.slot) <= farthest:
            self.rows += slot > self.slot
            self.slot = max(slot, self.slot)
        else:
            self.slot, self.rows = slot, 1
        if self.rows < self._geometry.jump_rows:
            raise self._refusal(slot, newest)
        self.slot = self.rows = 0
        return True

    def _refusal(self, slot: int, newest: int) -> ContractError:
        far = f"slot {slot} is {abs(slot - newest)} slots {'ahead of' if slot > newest else 'behind'} the newest one"
        wanted = f"{self._geometry.longest_step} are believed at once"
        count = f"{self.rows} of {self._geometry.jump_rows} rows in a row that make it believed"
        return ContractError("clock_jump", f"{far}, {wanted}; {count}")
