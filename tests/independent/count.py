#!/usr/bin/env python3
"""Counts the answers that Contrail must give for three data sets, straight from their files.

    count.py onlineretail FILE [--limit N]
    count.py zanbil FILE [--crawlers LIST] [--limit N]
    count.py otto FILE [--limit N]

Written from the words of the specification alone. It shares neither code nor mapping files with Contrail, and must not:
it is what Contrail's answers are compared with. FILE may be zstd-compressed (`zstdcat` is called). LIST holds one user agent a
line: those that count as crawlers. The answer is one JSON object on stdout. Python's standard library only.

The words, for onlineretail: lines are grouped into orders by InvoiceNo; invoices A... and lines with a quantity of 0 or less
outside C... are skipped; invoices C... are refunds with the sign changed (a positive quantity there has no meaning and is skipped); the
first line's time counts; it is British local time; a unit price is rounded half-even to pence before anything is summed.
"""

import argparse
import collections
import csv
import datetime
import decimal
import io
import json
import subprocess
import sys
import unicodedata
import urllib.parse
import zoneinfo


def text_of(path):
    """The file as text, line ends untouched."""
    if path.endswith(".zst"):
        raw = subprocess.run(["zstdcat", path], check=True, stdout=subprocess.PIPE).stdout
    else:
        with open(path, "rb") as file:
            raw = file.read()
    return raw.decode("utf-8")


def json_lines(path):
    """Every line that is a JSON object."""
    for line in text_of(path).split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def utc(local, zone):
    """A naive ISO time of a zone as RFC 3339 in UTC."""
    at = datetime.datetime.fromisoformat(local).replace(tzinfo=zone)
    return at.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def ranked(rows, measure, key, limit):
    """The greatest by measure; equals in the order of their key's bytes."""
    return sorted(rows, key=lambda row: (-row[measure], row[key].encode("utf-8")))[:limit]


# --- onlineretail ---------------------------------------------------------------------------------------------------------


def pence(price):
    return int((decimal.Decimal(price) * 100).quantize(decimal.Decimal(1), rounding=decimal.ROUND_HALF_EVEN))


def invoices_of(path):
    """number -> {time, customer, refund, lines: [(code, quantity, pence)]}, in the file's order."""
    london = zoneinfo.ZoneInfo("Europe/London")
    found = {}
    for row in csv.DictReader(io.StringIO(text_of(path), newline="")):
        number, quantity = row["InvoiceNo"], int(row["Quantity"])
        refund = number.startswith("C")
        if number.startswith("A") or (quantity >= 0 if refund else quantity <= 0):
            continue
        if number not in found:
            found[number] = {"at": utc(row["InvoiceDate"], london), "customer": row["CustomerID"], "refund": refund, "lines": []}
        found[number]["lines"].append((row["StockCode"], abs(quantity), pence(row["UnitPrice"])))
    return found


def onlineretail(args):
    invoices = invoices_of(args.file)
    products = {}
    for number, invoice in invoices.items():
        sign = -1 if invoice["refund"] else 1
        for code, quantity, price in invoice["lines"]:
            product = products.setdefault(code, {"product_id": code, "units": 0, "revenue_minor": 0, "in_orders": set()})
            product["units"] += sign * quantity
            product["revenue_minor"] += sign * quantity * price
            if not invoice["refund"]:
                product["in_orders"].add(number)
    rows = [{"product_id": p["product_id"], "units": p["units"], "orders": len(p["in_orders"]), "revenue_minor": p["revenue_minor"]} for p in products.values()]
    times = sorted(invoice["at"] for invoice in invoices.values())
    refunds = [invoice for invoice in invoices.values() if invoice["refund"]]
    return {
        "from": times[0],
        "to": times[-1],
        "currency": "GBP",
        "orders": len(invoices) - len(refunds),
        "refunds": len(refunds),
        "lines": sum(len(invoice["lines"]) for invoice in invoices.values()),
        "most_lines": max(len(invoice["lines"]) for invoice in invoices.values()),
        "without_customer": sum(not invoice["customer"] for invoice in invoices.values()),
        "products": len(products),
        "units": sum(row["units"] for row in rows),
        "revenue_minor": sum(row["revenue_minor"] for row in rows),
        "top_units": ranked(rows, "units", "product_id", args.limit),
        "top_revenue": ranked(rows, "revenue_minor", "product_id", args.limit),
        "timelines": timelines(invoices),
    }


def timelines(invoices):
    """Ten customers: the five with most invoices, then the five lowest ids that both bought and gave back."""
    of = collections.defaultdict(list)
    for number, invoice in invoices.items():
        if invoice["customer"]:
            of[invoice["customer"]].append((number, invoice))
    busiest = sorted(of, key=lambda customer: (-len(of[customer]), customer))[:5]
    both = [c for c in sorted(of) if c not in busiest and len({invoice["refund"] for _, invoice in of[c]}) == 2][:5]
    chosen = []
    for customer in busiest + both:
        events = [
            {
                "at": invoice["at"],
                "type": "order_refunded" if invoice["refund"] else "order_completed",
                "order": number,
                "lines": len(invoice["lines"]),
                "units": sum(quantity for _, quantity, _ in invoice["lines"]),
            }
            for number, invoice in of[customer]
        ]
        chosen.append({"customer": customer, "events": sorted(events, key=lambda e: (e["at"], e["order"]))})
    return chosen


# --- zanbil ---------------------------------------------------------------------------------------------------------------

PAGES = ("page_viewed", "collection_viewed", "cart_viewed")
ENTERED = {"1": "contact", "2": "address", "3": "shipping"}
COMPLETED = {"checkout_contact_info_submitted": "contact", "checkout_address_info_submitted": "address"}


def same_search(query):
    """Spellings that are one search: NFC, blanks folded and trimmed, lower case."""
    return " ".join(unicodedata.normalize("NFC", query).split()).lower()


def page_path(url):
    """A page's path: percent-decoded, NFC, without query and fragment."""
    return unicodedata.normalize("NFC", urllib.parse.unquote(url.split("#")[0].split("?")[0]))


def seen(pairs, limit, key, measure):
    """Counts (what, who): how often, and by how many different people."""
    times, people = collections.Counter(), collections.defaultdict(set)
    for what, who in pairs:
        times[what] += 1
        people[what].add(who)
    return ranked([{key: what, measure: n, "customers": len(people[what])} for what, n in times.items()], measure, key, limit)


def checkout_steps(rows):
    """How many checkouts entered and completed each step; a shopper's checkout is one a UTC day."""
    reached = set()
    for row in rows:
        checkout = (row["client"], row["ts"][:10])
        if row["event"] == "checkout_started" and row["props"]["step"] in ENTERED:
            reached.add((checkout, ENTERED[row["props"]["step"]], "entered"))
        elif row["event"] in COMPLETED:
            reached.add((checkout, COMPLETED[row["event"]], "completed"))
    counts = collections.Counter((step, status) for _, step, status in reached)
    return [{"step": s, "entered": counts[s, "entered"], "completed": counts[s, "completed"]} for s in ("contact", "address", "shipping")]


def zanbil_view(rows, limit):
    return {
        "events": len(rows),
        "top_viewed": seen(((r["props"]["product_id"], r["client"]) for r in rows if r["event"] == "product_viewed"), limit, "product_id", "views"),
        "top_searches": seen(((same_search(r["props"]["query"]), r["client"]) for r in rows if r["event"] == "search_submitted"), limit, "query", "searches"),
        "top_pages": seen(((page_path(r["path"]), r["client"]) for r in rows if r["event"] in PAGES), limit, "path", "views"),
        "suggestions": sum(r["event"] == "search_suggested" for r in rows),
        "carts": sum(r["event"] == "product_added_to_cart" for r in rows),
        "checkout_steps": checkout_steps(rows),
    }


def zanbil(args):
    crawlers = set(text_of(args.crawlers).split("\n")) if args.crawlers else set()
    crawlers.discard("")
    known = PAGES + tuple(COMPLETED) + ("product_viewed", "search_submitted", "search_suggested", "product_added_to_cart", "checkout_started")
    rows = [row for row in json_lines(args.file) if row["event"] in known and row["props"].get("step", "1") in ENTERED]
    people = [row for row in rows if row["user_agent"] not in crawlers]
    return {"included": zanbil_view(rows, args.limit), "excluded": zanbil_view(people, args.limit)}


# --- otto -----------------------------------------------------------------------------------------------------------------


def otto(args):
    views, carts = [], []
    orders = collections.defaultdict(list)
    for session in json_lines(args.file):
        who = str(session["session"])
        for event in session.get("events", []):
            if not isinstance(event, dict) or not isinstance(event["ts"], int):
                continue
            what = str(event["aid"])
            if event["type"] == "clicks":
                views.append((what, who))
            elif event["type"] == "carts":
                carts.append((what, who))
            elif event["type"] == "orders":
                orders[who, event["ts"]].append(what)
    sold = collections.Counter(what for items in orders.values() for what in items)
    in_orders = collections.Counter(what for items in orders.values() for what in set(items))
    return {
        "views": len(views),
        "carts": len(carts),
        "top_viewed": seen(views, args.limit, "product_id", "views"),
        "top_carts": seen(carts, args.limit, "product_id", "carts"),
        "orders": [{"session": who, "ts": ts, "items": sorted(items)} for (who, ts), items in sorted(orders.items())],
        "top_units": ranked([{"product_id": p, "units": n, "orders": in_orders[p]} for p, n in sold.items()], "units", "product_id", args.limit),
    }


def main():
    parser = argparse.ArgumentParser(description="Independent counts of three data sets.")
    parser.add_argument("dataset", choices=["onlineretail", "zanbil", "otto"])
    parser.add_argument("file")
    parser.add_argument("--crawlers", help="a file of user agents that count as crawlers, one a line")
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()
    json.dump({"onlineretail": onlineretail, "zanbil": zanbil, "otto": otto}[args.dataset](args), sys.stdout, ensure_ascii=False, indent=1)
    print()


if __name__ == "__main__":
    main()
