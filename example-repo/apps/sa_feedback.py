"""sa-feedback: remembers what people think of the scores.

POST /feedback {"sentence", "polarity", "correct"} -> 201; GET /feedback -> [{"ID", "Sentence", "Polarity", "Correct"}].
Kept in SQLite in DATABASE_DIR.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

import service
from aiohttp import web

DATABASE = web.AppKey("database", sqlite3.Connection)
TABLE = (
    "CREATE TABLE IF NOT EXISTS feedback "
    "(ID INTEGER PRIMARY KEY, Sentence TEXT NOT NULL, Polarity REAL NOT NULL, Correct INTEGER NOT NULL)"
)


def opened(folder: Path) -> sqlite3.Connection:
    folder.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(folder / "feedback.db", isolation_level=None)
    database.execute(TABLE)
    return database


def row_of(body: Any) -> tuple[str, float, bool]:
    """What is stored of a body; answers 400 to anything else."""
    match body:
        case {"sentence": str(sentence), "polarity": int() | float() as polarity, "correct": bool(correct)}:
            return sentence, float(polarity), correct
        case _:
            raise web.HTTPBadRequest(text='expected {"sentence": "...", "polarity": 0.5, "correct": true}')


async def listed(request: web.Request) -> web.Response:
    rows = request.app[DATABASE].execute("SELECT ID, Sentence, Polarity, Correct FROM feedback ORDER BY ID")
    names = [column[0] for column in rows.description]
    entries = [dict(zip(names, row, strict=True)) for row in rows]
    return web.json_response([{**entry, "Correct": bool(entry["Correct"])} for entry in entries])


async def added(request: web.Request) -> web.Response:
    try:
        row = row_of(await request.json())
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    request.app[DATABASE].execute("INSERT INTO feedback (Sentence, Polarity, Correct) VALUES (?, ?, ?)", row)
    return web.Response(status=201)


def main() -> None:
    app = web.Application()
    app[DATABASE] = opened(Path(os.environ.get("DATABASE_DIR", ".")))
    app.router.add_get("/feedback", listed)
    app.router.add_post("/feedback", added)
    service.run(app)


if __name__ == "__main__":
    main()
