"""Who somebody is, is an account, not a name; secrets say who issued them, and what they are good for.

Old records are told apart by how they came in. What went through the pages or through `/v1` after an account was made
is that account's, or its programs' users'; what a file named like it, and what the owner of the machine said before
there was any account, stays with the bare name. No verdict is lost, and none changes but for whose it is.

A revision is frozen: it names columns and allowed values itself and does not import the tables of today.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

CLAIMS = """
    SELECT n.id AS annotator, n.name AS name, a.id AS account, a.name AS account_name, a.created_at AS since
    FROM annotators n JOIN accounts a
    ON n.name = a.name OR substr(n.name, 1, length(a.name) + 1) = a.name || ':'
    WHERE n.kind = 'human' AND n.account_id IS NULL
    ORDER BY CASE WHEN n.name = a.name THEN 0 ELSE 1 END, a.id
"""
"""Whose an annotator's records may be: the account's of that name, or that of whose program they are a user."""
ON_A_PAGE = """
    EXISTS (
        SELECT 1 FROM views w
        WHERE w.id = verdicts.view_id AND w.expires_at > w.created_at AND w.created_at >= a.created_at)
    OR (verdicts.view_id IS NULL AND EXISTS (
        SELECT 1 FROM messages m JOIN conversations c ON m.conversation_id = c.id
        WHERE m.comparison_id = verdicts.comparison_id AND c.annotator_id = verdicts.annotator_id
        AND c.created_at >= a.created_at))
"""
"""A file's verdicts may have views too, which end as they begin: nobody had them before them here."""
BY_A_PROGRAM = """
    verdicts.view_id IS NULL AND EXISTS (
        SELECT 1 FROM requests r WHERE r.comparison_id = verdicts.comparison_id AND r.account = a.name
        AND r.created_at >= a.created_at)
"""
KEPT = "id, comparison_id, annotator_id, choice, strength, seconds, reasons, created_at, exchanged, view_id"
"""Columns of verdicts that nothing else may change (0002)."""


def upgrade() -> None:
    """Give annotators their account, tokens their issuer and scopes, and carry over what is there."""
    _let_names_be_shared()
    # Plain SQL, which both databases read alike: Alembic does not add a column that refers to a table on SQLite.
    op.execute("ALTER TABLE tokens ADD COLUMN scopes TEXT DEFAULT '' NOT NULL")
    op.execute(
        "ALTER TABLE tokens ADD COLUMN issuer_id INTEGER CONSTRAINT fk_tokens_issuer_id REFERENCES accounts (id)"
    )
    op.create_index("ix_tokens_issuer_id", "tokens", ["issuer_id"])
    _limit_old_keys()
    claims = op.get_bind().execute(sa.text(CLAIMS)).all()
    if claims:
        _let_annotators_change(True)
        for claim in claims:
            _carry(claim)
        _let_annotators_change(False)
    _name_requests()


def _let_names_be_shared() -> None:
    """Make (account, name) what an annotator is known by, and (name, kind) only where there is no account."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE annotators ADD COLUMN account_id INTEGER")
        op.execute(
            "ALTER TABLE annotators ADD CONSTRAINT fk_annotators_account_id FOREIGN KEY (account_id) "
            "REFERENCES accounts (id)"
        )
        op.drop_constraint("uq_annotators_name_kind", "annotators")
    else:
        # SQLite drops no constraint, so the table is made anew; what refers to it is checked at the end.
        op.execute("PRAGMA defer_foreign_keys = ON")
        op.execute("CREATE TEMPORARY TABLE annotators_before AS SELECT id, name, kind FROM annotators")
        op.drop_table("annotators")
        op.create_table(
            "annotators",
            sa.Column("id", sa.Integer(), nullable=False, primary_key=True),
            sa.Column("name", sa.Text(), nullable=False),
            sa.Column("kind", sa.Text(), nullable=False),
            sa.Column("account_id", sa.Integer(), sa.ForeignKey("accounts.id"), nullable=True),
            sa.CheckConstraint("kind IN ('human', 'ai', 'simulated')", name="kind"),
        )
        op.execute("INSERT INTO annotators (id, name, kind) SELECT id, name, kind FROM annotators_before")
        op.execute("DROP TABLE annotators_before")
    op.create_index("ix_annotators_name", "annotators", ["name"])
    op.execute("CREATE UNIQUE INDEX uq_annotators_named ON annotators (name, kind) WHERE account_id IS NULL")
    op.execute(
        "CREATE UNIQUE INDEX uq_annotators_account ON annotators (account_id, name) WHERE account_id IS NOT NULL"
    )


def _limit_old_keys() -> None:
    """Let old keys do what a program does, for a year from now."""
    year = "now() + INTERVAL '365 days'"
    if op.get_bind().dialect.name != "postgresql":
        year = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+365 days')"
    op.execute("UPDATE tokens SET scopes = 'chat feedback' WHERE use = 'key'")
    op.execute(f"UPDATE tokens SET expires_at = {year} WHERE use = 'key' AND expires_at IS NULL")


def _let_annotators_change(may: bool) -> None:
    """Let verdicts change whose they are, or no more: for as long as they are carried over."""
    if may:
        table = " ON verdicts" if op.get_bind().dialect.name == "postgresql" else ""
        op.execute(f"DROP TRIGGER verdicts_refuse_update{table}")
    elif op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {KEPT} ON verdicts FOR EACH STATEMENT "
            "EXECUTE FUNCTION verdicts_append_only()"
        )
    else:
        op.execute(
            f"CREATE TRIGGER verdicts_refuse_update BEFORE UPDATE OF {KEPT} ON verdicts "
            "BEGIN SELECT RAISE(ABORT, 'verdicts are append-only'); END"
        )


def _carry(claim: Any) -> None:
    """Give an account what of an annotator's records came in through the server after the account was made."""
    bind = op.get_bind()
    own = claim.name == claim.account_name
    named = {"annotator": claim.annotator, "account": claim.account, "name": claim.name}
    since = "(SELECT created_at FROM accounts WHERE id = :account)"
    came = f"({ON_A_PAGE}) OR ({BY_A_PROGRAM})" if own else BY_A_PROGRAM
    verdicts = f"annotator_id = :annotator AND EXISTS (SELECT 1 FROM accounts a WHERE a.id = :account AND ({came}))"
    pages = f"annotator_id = :annotator AND created_at >= {since}" if own else "annotator_id IS NULL"
    theirs = {
        "verdicts": verdicts,
        "views": f"{pages} AND expires_at > created_at",
        "flags": pages,
        "thumbs": pages,
        "conversations": pages,
    }

    def count(table: str, condition: str) -> int:
        query = sa.text(f"SELECT count(*) FROM {table} WHERE {condition}")
        return int(bind.execute(query, {name: named[name] for name in named if f":{name}" in condition}).scalar_one())

    found = sum(count(table, condition) for table, condition in theirs.items())
    there = sum(count(table, "annotator_id = :annotator") for table in theirs)
    if not found:
        return
    if found == there:
        bind.execute(sa.text("UPDATE annotators SET account_id = :account WHERE id = :annotator"), named)
        return
    new = sa.text("INSERT INTO annotators (name, kind, account_id) VALUES (:name, 'human', :account) RETURNING id")
    named["new"] = bind.execute(new, {"name": claim.name, "account": claim.account}).scalar_one()
    # Verdicts first: whose they are is seen by the conversations that they stand in.
    for table, condition in theirs.items():
        move = f"UPDATE {table} SET annotator_id = :new WHERE {condition}"
        bind.execute(sa.text(move), {name: named[name] for name in named if f":{name}" in move})


def _name_requests() -> None:
    """Key what programs sent by the account's id; what came before there were accounts is `local`."""
    made = "FROM accounts a WHERE a.name = requests.account AND a.created_at <= requests.created_at"
    op.execute(
        f"UPDATE requests SET account = (SELECT 'account ' || CAST(a.id AS TEXT) {made}) WHERE EXISTS (SELECT 1 {made})"
    )
    op.execute("UPDATE requests SET account = 'local' WHERE account NOT LIKE 'account %'")


def downgrade() -> None:
    """Refuse: going back would mix up who said what."""
    raise NotImplementedError
