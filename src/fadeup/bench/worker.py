"""`python -m fadeup.bench.worker ORDER`: peak memory of one call, in this process alone."""

from __future__ import annotations

import json
import sys

import torch

from fadeup.bench.case import Case, prepare
from fadeup.bench.timing import peak_memory, resident_memory


def main(order: str) -> None:
    """Measure, and print the result as JSON.

    The second call is measured: the first loads libraries, starts threads, and compiles. What it keeps for good is
    told beside it.
    """
    told = json.loads(order)
    case, peer = Case(**told["case"]), told["peer"]
    torch.set_num_threads(told["threads"])
    with torch.set_grad_enabled(case.passes == "forward+backward"):
        call = prepare(case, peer).call(case.passes)
        before = resident_memory()
        call()
        after = resident_memory()
        kept = None if before is None or after is None else after - before
        print(json.dumps({"peak_mib": peak_memory(call), "kept_mib": kept}))


if __name__ == "__main__":
    main(sys.argv[1])
