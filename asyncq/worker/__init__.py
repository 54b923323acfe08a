"""The worker: a cast of small parts around one hot loop.

dispatch    the hot loop: wait for a slot, claim, start
sources     where jobs come from: claims, waits for the bell, gets over outages
attempt     one run of one job: open → call → outcome
finisher    gathers outcomes and records them, a batch a turn
deadlines   soft and hard timeouts, with one timer for all jobs
leases      a thread that renews what is held, a loop that takes back what others lost
trials      runs suspects one at a time, so that none is buried for what another did
timekeeper  moves scheduled jobs to their lanes when they are due
control     listens to orders: cancel, quiet, stop, stacks
heartbeat   says that the worker lives, and clears away those that do not
worker      puts the parts together, starts and stops them
process     runs `process=True` tasks in children that can be killed
supervisor  several worker processes, and their restarts
"""

from asyncq.worker.worker import Worker

__all__ = ["Worker"]
