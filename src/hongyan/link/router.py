"""The engine's side of the links: takes what gateways ask, and tells each only what concerns its sessions.

It is the engine's `GatewayApi`. A session's number says whose it is (`number << 32 | n`). `@user` is carried for a
link before the engine hears of the login, groups from the login's answer on; both change only with outcomes as they
are told. So nothing slips through between a reading and a telling (ARCHITECTURE.md).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import structlog

from hongyan.errors import Refused, WireError
from hongyan.link import messages as m
from hongyan.link.base import Gap, PresenceState, Resumed, ServingEngine
from hongyan.link.base import Told as Outcomes
from hongyan.link.scrape import Scraper
from hongyan.link.stream import Stream, encode
from hongyan.link.topics import Carried, Topics
from hongyan.metrics import Counters
from hongyan.protocol.outcomes import Duplicate, GroupChanged, Outcome, Rejected
from hongyan.protocol.records import Record, Send
from hongyan.protocol.state import Message

SESSION_BITS = 32
MAX_BACKLOG_BYTES = 64 * 1024 * 1024  # of one link; its gateway stands still, and is cut off
IDLE_RECORDS = 500  # a gateway that nothing concerns is told so once in so many
A_SLICE = 200  # sessions of a lost link that are logged out in one go
REPLACED_S = 3.0  # the longest that a login waits for what its device's older connection had acknowledged

_INTERNAL = WireError("internal", "the server failed to answer this; try again")

# What is read may be large and can wait; what is told must not wait behind it. So reads stand back while so much waits in
# the link. (Without: a sync storm filled links up to MAX_BACKLOG_BYTES, and each cut began the storm anew.)
READS = frozenset({"sync", "history", "conversations"})
ROOM_BYTES = 1024 * 1024
READS_AT_A_TIME = 4  # of a gateway: each may pass ROOM_BYTES by a reply
_EARLIER_LOGIN = WireError("unavailable", "an earlier login of this connection is under way")

log = structlog.get_logger("hongyan.link")


class Link:
    """One gateway. `number` 0: it has not said which."""

    def __init__(self) -> None:
        self.number = 0
        self.listening = False
        self.touched = False  # it is told something of this batch
        self.told = 0  # up to this offset
        self.sessions: dict[int, Carried[Link]] = {}
        self.reads = asyncio.Semaphore(READS_AT_A_TIME)
        self.room = asyncio.Event()  # set when it is behind no longer
        self.resumed: list[Resumed] = []  # those it says are logged in, before it says who it is
        self.stream: Stream


class Router:
    """See `link.base.GatewayApi`. `secret` is what tokens are verified with."""

    def __init__(
        self, engine: ServingEngine, secret: bytes, counters: Counters,
        heard: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`heard` is called when one more gateway takes connections."""
        self.links: dict[int, Link] = {}
        self.empty = asyncio.Event()  # no gateway is linked
        self.empty.set()
        self._engine = engine
        self._scraper = Scraper(counters)
        self._secret = secret
        self._heard = heard
        self._epoch = secrets.token_hex(8)
        self._leaving: dict[int, Link] = {}  # ended, and not all of their sessions are logged out
        self._topics: Topics[Link] = Topics()
        self._open: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: dict[tuple[str, str], Carried[Link]] = {}  # of each user's device
        self._entering: set[int] = set()  # sessions of the logins under way
        self._replaced: dict[tuple[str, str], Carried[Link]] = {}  # by a login that is not answered yet
        self._gone: dict[int, asyncio.Future[None]] = {}  # replaced sessions that a login waits for
        self._takers: dict[type[Any], Callable[[Link, Any], None]] = {
            m.Send: self._send, m.Ack: self._ack, m.Login: self._login, m.Logout: self._logout,
            m.Ask: self._ask, m.Hello: self._hello, m.Sessions: self._resumed,
            m.Listening: self._listening,
            m.Figures: self._figures,
        }  # fmt: skip

    # links

    def accept(self) -> Stream:
        """A gateway connects."""
        link = Link()
        link.stream = Stream(
            m.decode_to_engine, lambda messages: self._take(link, messages), lambda: self._lost(link),
            link.room.set, ROOM_BYTES,
        )  # fmt: skip
        self._open.add(link)
        self.empty.clear()
        return link.stream

    @property
    def listening(self) -> int:
        """Gateways that take connections."""
        return sum(link.listening for link in self._open)

    async def close(self) -> None:
        """Cut what is left."""
        for link in tuple(self._open):
            link.stream.abort()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _lost(self, link: Link) -> None:
        link.room.set()
        self._open.discard(link)
        if self.links.get(link.number) is link:
            del self.links[link.number]
            self._scraper.gone(link.number)
        if not self._open:
            self.empty.set()
        for session in link.sessions:
            self._is_gone(session)
        if link.sessions:
            log.warning("a gateway is gone", gateway=link.number, sessions=len(link.sessions))
            self._leaving[link.number] = link
            self._spawn(self._log_out_all(link))

    async def _log_out_all(self, link: Link) -> None:
        """A few at a time: those of other gateways are served meanwhile."""
        while link.sessions:
            try:
                self._log_out(link, A_SLICE)
            except Exception:  # of one session, which is gone from the list: the others follow
                log.exception("a logout failed", gateway=link.number)
            await asyncio.sleep(0)
        if self._leaving.get(link.number) is link:
            del self._leaving[link.number]

    def _log_out(self, link: Link, count: int | None = None) -> None:
        for carried in list(islice(link.sessions.values(), count)):
            self._leave(carried)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # what gateways ask

    def _take(self, link: Link, received: list[Any]) -> None:
        takers = self._takers
        for message in received:
            if not link.number and type(message) not in (m.Hello, m.Sessions):
                link.stream.abort("a gateway that does not say which it is")
                return
            try:
                takers[type(message)](link, message)
            except Exception:
                log.exception("a message of a gateway failed", kind=type(message).__name__)

    def _resumed(self, link: Link, sessions: m.Sessions) -> None:
        if not link.number:
            link.resumed += sessions.sessions

    def _hello(self, link: Link, hello: m.Hello) -> None:
        if link.number or hello.number in self.links or hello.number <= 0:
            link.stream.abort("a gateway with another one's number")
            return
        link.number = hello.number
        self.links[link.number] = link
        before = self._leaving.pop(link.number, None)
        if before is not None:
            self._log_out(before)
        link.told = self._engine.offset
        link.stream.put(m.Welcome(self._epoch, self._secret, link.told))
        if hello.epoch:
            self._restore(link, hello)
        link.resumed = []
        link.stream.put(m.Told(link.told))
        link.stream.put(m.Ready())

    def _restore(self, link: Link, hello: m.Hello) -> None:
        """In one step: what is told from here on comes behind what was not told before."""
        groups: list[tuple[int, list[str]]] = []
        away: list[int] = []
        gap = self._engine.gap_after(hello.told)
        for resumed in link.resumed:
            carried = Carried(link, resumed.session, resumed.user, resumed.device)
            link.sessions[resumed.session] = carried
            self._topics.enter(carried)
            theirs = None
            if gap is not None:
                theirs = self._engine.resume(resumed, hello.epoch == self._epoch)
            if theirs is None:
                self._leave(carried)
                if not carried.replaced:
                    away.append(resumed.session)
                continue
            self._newest[resumed.user, resumed.device] = carried
            self._replaced.pop((resumed.user, resumed.device), None)  # no login waits for it
            for group in theirs:
                self._topics.add(carried, group)
            groups.append((resumed.session, list(theirs)))
        if gap is None:
            log.warning("cannot tell what a gateway missed, its clients come back", gateway=link.number)
            gap = Gap((), (), ())
        for first in range(0, len(groups), m.A_MESSAGE):
            link.stream.put(m.Groups(groups[first : first + m.A_MESSAGE]))
        link.stream.put(m.Restored(away, list(gap.away), list(gap.resync)))
        for message in gap.messages:
            if link in self._concerned(0, message):
                link.stream.put(m.Stored(0, message))
        log.info("a gateway is back", gateway=link.number, sessions=len(groups), away=len(away),
                 told_again=len(gap.messages))  # fmt: skip

    def _listening(self, link: Link, message: m.Listening) -> None:
        link.listening = True
        self._heard()

    def _figures(self, link: Link, reported: m.Figures) -> None:
        """Twice a second, so that a quiet gateway is told how far it is: else the journal is trimmed past it, and after
        the engine's death its clients would have to come back. And that it hears anything: else it takes the engine for
        one that hangs."""
        self._scraper.report(link.number, reported.counters)
        link.told = self._engine.offset
        link.stream.put(m.Told(link.told))

    async def total(self) -> Counters:
        """The counters of all processes."""
        return await self._scraper.total({number: link.stream for number, link in self.links.items()})

    def _send(self, link: Link, send: m.Send) -> None:
        try:
            self._engine.send(send.session, send.ref, send.to, send.content_type, send.content, send.retry)
            return
        except Refused as refusal:
            error = refusal.error
        except Exception:
            log.exception("a send failed", session=send.session)
            error = _INTERNAL
        link.stream.put(m.Refusal([(send.session, send.ref)], error))

    def _ack(self, link: Link, ack: m.Ack) -> None:
        session = ack.session
        carried = link.sessions.get(session)
        if carried is not None and carried.replaced:
            # Its gateway had read it before it heard of the newer login: it is the same device's.
            newest = self._newest.get((carried.user, carried.device))
            session = newest.session if newest is not None else session
        try:
            self._engine.ack(session, ack.address, ack.seq)
        except Refused:
            pass

    def _login(self, link: Link, login: m.Login) -> None:
        if login.session in self._entering:  # one that its gateway waits for no more
            link.stream.put(m.Failure(login.call, _EARLIER_LOGIN))
            return
        self._entering.add(login.session)
        carried = link.sessions[login.session] = Carried(link, login.session, login.user, login.device)
        self._topics.enter(carried)
        self._spawn(self._let_in(login, carried))

    async def _let_in(self, login: m.Login, carried: Carried[Link]) -> None:
        try:
            await self._log_in(login, carried)
        finally:
            self._entering.discard(login.session)

    async def _log_in(self, login: m.Login, carried: Carried[Link]) -> None:
        link, session, owner = carried.link, login.session, (login.user, login.device)
        if link.sessions.get(session) is not carried:  # given up before its turn: it must not replace anybody
            return
        try:
            session_id, groups = await self._engine.login(session, *owner, login.platform)
        except Refused as refusal:
            self._leave(carried)
            link.stream.put(m.Failure(login.call, refusal.error))
            return
        except Exception:
            log.exception("a login failed", session=session)
            self._leave(carried)
            link.stream.put(m.Failure(login.call, None))
            return
        if link.sessions.get(session) is not carried:  # it went while the engine was at it
            self._engine.logout(session)
            return
        for group in groups or ():
            self._topics.add(carried, group)
        self._newest[owner] = carried
        older = self._replaced.pop(owner, None)
        if older is not None and not older.link.stream.closed:
            await self._gone_from(older)
        # Not what the login returned: since then changes of membership may have been told.
        link.stream.put(
            m.Reply(login.call, encode((session_id, sorted(carried.topics - {f"@{login.user}"}))))
        )

    async def _gone_from(self, older: Carried[Link]) -> None:
        """Until the older connection's gateway has handed over what it had acknowledged."""
        if older.session not in older.link.sessions:
            return
        gone = self._gone[older.session] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(REPLACED_S):
                await gone
        except TimeoutError:
            log.warning("a gateway does not close a connection that was replaced", gateway=older.link.number)
        finally:
            self._gone.pop(older.session, None)

    def _is_gone(self, session: int) -> None:
        gone = self._gone.get(session)
        if gone is not None and not gone.done():
            gone.set_result(None)

    def _logout(self, link: Link, logout: m.Logout) -> None:
        carried = link.sessions.get(logout.session)
        if carried is not None:
            self._leave(carried)
            self._is_gone(logout.session)

    def _leave(self, carried: Carried[Link]) -> None:
        carried.link.sessions.pop(carried.session, None)
        self._topics.leave(carried)
        owner = (carried.user, carried.device)
        if self._newest.get(owner) is carried:
            del self._newest[owner]
        self._engine.logout(carried.session)

    def _ask(self, link: Link, ask: m.Ask) -> None:
        self._spawn(self._answer(link, ask))

    async def _answer(self, link: Link, ask: m.Ask) -> None:
        if ask.method not in READS:
            await self._reply(link, ask)
            return
        async with link.reads:
            while link.stream.behind and not link.stream.closed:
                link.room.clear()
                await link.room.wait()
            if not link.stream.closed:  # else nobody waits for it any more
                await self._reply(link, ask)

    async def _reply(self, link: Link, ask: m.Ask) -> None:
        try:
            if ask.method not in m.ANSWERS:
                raise ValueError(f"no such question: {ask.method}")
            value = await getattr(self._engine, ask.method)(ask.session, *ask.arguments)
            answer: m.Reply | m.Failure = m.Reply(ask.call, encode(value))
        except Refused as refusal:
            answer = m.Failure(ask.call, refusal.error)
        except Exception:
            log.exception("a request failed", session=ask.session, request=ask.method)
            answer = m.Failure(ask.call, None)
        link.stream.put(answer)

    # GatewayApi

    def tell(self, told: Iterable[Outcomes], first: int = 0) -> None:
        stored, offset = self._stored, first - 1
        for session, record, outcome in told:
            offset += 1
            try:
                if type(outcome) is Message:
                    stored(session, outcome)
                else:
                    self._other(session, record, outcome)
            except Exception:  # nobody may miss a push in silence: all gateways begin anew
                log.exception("cannot tell an outcome", outcome=type(outcome).__name__)
                for link in tuple(self._open):
                    link.stream.abort("an outcome could not be told")
        for link in self.links.values():
            if link.touched or offset - link.told > IDLE_RECORDS:
                link.touched = False
                link.told = offset
                link.stream.put_encoded(encode(m.Told(offset)))
                link.stream.flush()
                if link.stream.backlog > MAX_BACKLOG_BYTES:
                    link.stream.abort("the gateway does not take what it is told")

    def _stored(self, session: int, message: Message) -> None:
        if to := self._concerned(session, message):
            encoded = encode(m.Stored(session, message))
            for link in to:
                link.touched = True
                link.stream.put_encoded(encoded)

    def _concerned(self, session: int, message: Message) -> set[Link]:
        """The links of all that are to hear of a message."""
        topics, name = self._topics.table, message.conversation
        to: set[Link] = set()
        if name[0] == "#":
            to.update(topics.get(name, ()))
        else:
            for user in name.split("|"):
                to.update(topics.get(f"@{user}", ()))
        if session:
            origin = self.links.get(session >> SESSION_BITS)
            if origin is not None:
                to.add(origin)
        return to

    def _other(self, session: int, record: Record, outcome: Outcome) -> None:
        if isinstance(outcome, GroupChanged):
            self._group_changed(outcome)
            return
        link = self.links.get(session >> SESSION_BITS) if session else None
        if link is None or type(record) is not Send:
            return
        link.touched = True
        if isinstance(outcome, Duplicate):
            link.stream.put(
                m.Repeated(session, record.key, record.sender, outcome.conversation, outcome.sent)
            )
        elif isinstance(outcome, Rejected):
            link.stream.put(m.Rejection(session, record.key, outcome.code, outcome.text, outcome.field))

    def _group_changed(self, outcome: GroupChanged) -> None:
        if not outcome.events:
            return
        topics, group = self._topics, outcome.group
        to = set(topics.links(group))
        for event, user in outcome.events:
            for carried in topics.sessions(user):
                to.add(carried.link)
                if event == "joined":
                    topics.add(carried, group)
                elif event == "left":
                    topics.drop(carried, group)
        encoded = encode(m.Changed(outcome))
        for link in to:
            link.touched = True
            link.stream.put_encoded(encoded)

    def refuse(self, sends: Sequence[tuple[int, str]], error: WireError) -> None:
        by_link: dict[int, list[tuple[int, str]]] = {}
        for send in sends:
            by_link.setdefault(send[0] >> SESSION_BITS, []).append(send)
        for number, theirs in by_link.items():
            if number in self.links:
                self.links[number].stream.put(m.Refusal(theirs, error))

    def replace(self, session: int) -> None:
        """The engine forgets the session at once, its gateway hands over later what it had acknowledged."""
        link = self.links.get(session >> SESSION_BITS)
        carried = link.sessions.get(session) if link is not None else None
        if link is not None and carried is not None:
            carried.replaced = True
            self._replaced[carried.user, carried.device] = carried
            link.stream.put(m.Replace(session))

    def presence(self, sessions: Sequence[int], states: Mapping[str, PresenceState]) -> None:
        by_link: dict[int, list[int]] = {}
        for session in sessions:
            by_link.setdefault(session >> SESSION_BITS, []).append(session)
        for number, theirs in by_link.items():
            if number in self.links:
                self.links[number].stream.put(m.Presence(theirs, dict(states)))
