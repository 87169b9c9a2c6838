"""What `seckill doctor` knows: facts asked of every dependency, and what those facts mean.

`probes` ask (bounded, reading only), `judgements` are pure, `examine` puts them together. The roles use the same
judgements at their start, so that both say the same. May use the clients of every service; knows no role.
"""
