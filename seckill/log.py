"""Structured logging: named events with bound identity, one line each on stderr. Secrets never reach it."""

from __future__ import annotations

import logging
import sys

import structlog

SHORT_OF_WORDS = ("sqlalchemy.pool", "grpc._cython")
"""Loggers whose tracebacks tell no more than their last line: a connection, or a caller, has gone in the middle."""

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str = "info", *, json_lines: bool = False, colors: bool = False) -> None:
    """Sets up structlog for the process: `log.info("try_succeeded", branch="product")`."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json_lines else structlog.dev.ConsoleRenderer(colors=colors)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Libraries speak up only when something is wrong; their lines look like ours.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_library_lines(renderer))
    handler.addFilter(_on_one_line)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    # It warns of each row that an insert-ignore leaves alone: what the barrier expects of every repeat and cancel.
    logging.getLogger("asyncmy").setLevel(logging.ERROR)


def _on_one_line(record: logging.LogRecord) -> bool:
    """Takes away the traceback of what is SHORT_OF_WORDS; the error itself joins the line."""
    if record.exc_info and record.name.startswith(SHORT_OF_WORDS):
        error = record.exc_info[1]
        told = " ".join(str(error).split())
        record.msg, record.args = f"{record.getMessage()} ({type(error).__name__}: {told})", ()
        record.exc_info = None
    return True


def _library_lines(renderer: structlog.typing.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
