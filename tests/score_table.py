"""Tables of scores written by hand."""

import numpy as np

from hf_unlearn.audit import Scores


def table(log_probs, hits=None, ends=None, mean=None, std=None, zlib_size=None, sampled=None, dtype=np.float64):
    """`Scores` from one list of log-probabilities an example; the other columns are lists of lists as well."""

    def flat(rows, default, kind):
        rows = [[default] * len(row) for row in log_probs] if rows is None else rows
        return np.array([value for row in rows for value in row], dtype=kind)

    lengths = [len(row) for row in log_probs]
    total = sum(lengths)
    return Scores(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_ids=np.arange(total, dtype=np.int32),
        log_prob=flat(log_probs, 0.0, dtype),
        hit=flat(hits, True, bool),
        rank=np.zeros(total, np.int32),
        mean=flat(mean, -1.0, dtype),
        std=flat(std, 1.0, dtype),
        margin=np.ones(total, dtype),
        is_end=flat(ends, False, bool),
        zlib_size=np.array([10] * len(lengths) if zlib_size is None else zlib_size, np.int32),
        sampled={key: flat(rows, 0.0, dtype) for key, rows in (sampled or {}).items()},
    )
