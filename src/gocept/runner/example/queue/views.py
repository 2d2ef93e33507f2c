"""What a browser sees of the queue."""

from zope.component import queryMultiAdapter
from zope.component.hooks import getSite
from zope.publisher.browser import BrowserView

from gocept.runner.example.queue.jobs import path_of, queue_of
from gocept.runner.example.queue.words import counted

PAGE = '''\
<!DOCTYPE html>
<title>Words</title>
<p>{number} words</p>
<form method="post">{token}<button>Count the words</button></form>
'''


class Words(BrowserView):  # type: ignore[misc]
    """Shows how many words there are, and has them counted.

    It answers before this is done. The request that is committed wakes the
    worker.
    """

    def __call__(self) -> str:
        if self.request.method == 'POST':
            queue_of(getSite()).put(path_of(self.context))
        number = counted(self.context)
        self.request.response.setHeader(
            'Content-Type', 'text/html; charset=utf-8')
        return PAGE.format(number='?' if number is None else number,
                           token=self._token())

    def _token(self) -> str:
        """With Plone, the proof that the form is the site's own."""
        authenticator = queryMultiAdapter(
            (self.context, self.request), name='authenticator')
        if authenticator is None:
            return ''
        token: str = authenticator.authenticator()
        return token
