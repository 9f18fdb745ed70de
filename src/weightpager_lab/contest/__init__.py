"""One benchmark for all who could serve the same tasks: weightpager, and what people use today.

`run.run_contest` starts a process for each method, under the same limits; `worker` is that process, `measuring` what it
does, and every other module a way to keep tasks and to switch between them.
"""
