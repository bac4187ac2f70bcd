"""Jobs: a command run once per datum over versioned inputs, its results committed with their provenance.

    spec ── plan ── schedule ── record ── commit
             │         │
           datum     staging, executors, outputs

`spec`, `datum`, `plan` and `state` are pure; `program`, `staging` and `outputs` touch the local disk; `schedule` runs (trio); `record`,
`union` and `jobs` are what is kept. `job` puts them together, `cli` is the command `pfsjob`.
"""
