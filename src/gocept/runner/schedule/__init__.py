"""When a tick is due, by the clock on the wall. See `ISchedule`."""

from gocept.runner.schedule.schedule import Schedule

__all__ = ['Schedule']
