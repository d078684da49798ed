"""`python -m fadeup.bench.worker ORDER`: peak memory of one call, in this process alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch

from fadeup.bench.case import Case, prepare
from fadeup.bench.timing import peak_memory

WARM_SIDE = 8


def main(order: str) -> None:
    """Measure, and print the result as JSON.

    A small call comes before, which loads libraries and starts threads. A compiled function is warmed by the very call
    that is measured, since otherwise the compiler would be.
    """
    told = json.loads(order)
    case, peer = Case(**told["case"]), told["peer"]
    torch.set_num_threads(told["threads"])
    with torch.set_grad_enabled(case.passes == "forward+backward"):
        if peer != "unfold-compiled":
            small = replace(case, side=min(case.side, WARM_SIDE))
            prepare(small, peer).call(case.passes)()
        call = prepare(case, peer).call(case.passes)
        if peer == "unfold-compiled":
            call()
        print(json.dumps({"peak_mib": peak_memory(call)}))


if __name__ == "__main__":
    main(sys.argv[1])
