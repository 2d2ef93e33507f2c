"""An add-on to copy: a queue that browser views fill and a worker empties.

A view must answer at once. So the view `Words` does not count the words of a
text. It puts a job into the queue of its site (`jobs.Queue`), and the worker
`worker.work` does the job. The queue is an annotation of the site, an object
in the database like any other. What a request puts into it is there if the
transaction of the request is committed. A job is taken out in the transaction
that does it. So no job is lost, and none is done twice, whatever process is
killed. There is no broker to install, to back up, and to keep in step with the
database.

``configure.zcml`` is that of an add-on for Plone: the view and the worker.
With it in the instance, start the worker beside the site, on the same ZEO
server or RelStorage::

    gocept-runner run words --config etc/zope.conf --site Plone

The worker sleeps until the queue has changed: `worker.watched` names the
object. Start a second worker if one is too slow; the two share the jobs.

An application of the Zope Toolkit includes ``worker.zcml`` only, and declares
the view like its own views.
"""
