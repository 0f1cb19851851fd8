"""Scores in Flink SQL: windows are SQL's own, the model is a function that scores Arrow batches.

    python examples/flink_sql_scores.py payments.jsonl

Prints a line of JSON for each card and minute: what it spent, and how likely fraud is. On a cluster:
`flink run -m HOST:PORT -py examples/flink_sql_scores.py payments.jsonl`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyflink.table import EnvironmentSettings, TableEnvironment

import streamml.jobs
from streamml.flink import sql

SPENT = """
    SELECT card_id, window_end, COUNT(*) AS n, SUM(amount) AS spent, AVG(amount) AS usual, MAX(amount) AS most
    FROM TUMBLE(TABLE payments, DESCRIPTOR(paid_at), INTERVAL '1' MINUTE)
    GROUP BY card_id, window_start, window_end
"""


def main(path: str) -> None:
    t_env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    t_env.get_config().set("python.executable", sys.executable)
    t_env.get_config().set("parallelism.default", "1")
    t_env.execute_sql(f"""
        CREATE TABLE payments (
            tx_id STRING, card_id STRING, amount DOUBLE, ts BIGINT,
            paid_at AS TO_TIMESTAMP_LTZ(ts, 3),
            WATERMARK FOR paid_at AS paid_at - INTERVAL '5' SECOND
        ) WITH (
            'connector' = 'filesystem', 'path' = '{Path(path).resolve().as_uri()}',
            'format' = 'json', 'json.ignore-parse-errors' = 'true'
        )
    """)
    bundles = Path(streamml.jobs.__path__[0], "bundles")
    sql.register(t_env, "fraud_score", "fraud@prod", models=[bundles])
    scored = t_env.execute_sql(f"""
        SELECT card_id, CAST(window_end AS STRING), n, spent, usual, most,
               fraud_score(most, n, spent, usual, most, n, 0.0)
        FROM ({SPENT})
    """)
    names = ("card_id", "window_end", "n", "spent", "usual", "most", "score")
    with scored.collect() as rows:
        for row in rows:
            print(json.dumps(dict(zip(names, row, strict=True))))


if __name__ == "__main__":
    main(sys.argv[1])
