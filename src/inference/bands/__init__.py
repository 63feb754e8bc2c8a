"""A network's large maps made a few rows at a time, as exactly as whole ones.

Read in this order: ``rows`` (resizing), ``row_streams`` (convolutions), ``shallow_stages`` and ``encoder``,
``receptive_field`` (RFB), ``high_resolution`` (LSE, EGF, mask features).
"""
