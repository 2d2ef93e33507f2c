"""From zope.conf to an open database, and the attempts of a transaction."""
