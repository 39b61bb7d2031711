"""Mean waits in queues, for the pools: M/M/1, M/M/c, M/G/1, G/G/c, and a finite block that starts empty.

Rates in requests per second, service in seconds, results in seconds of waiting before service. A queue that cannot
keep up (utilisation 1 or more) waits for ever: inf, not an error. Only a finite block still has a finite mean then.
"""

from __future__ import annotations

from math import erf, exp, inf, isinf, pi, sqrt


def utilisation(rate_rps: float, service_s: float, num_servers: int = 1) -> float:
    """Share of the servers' time that is busy: ``rate * service / c``."""
    return rate_rps * service_s / num_servers


def mm1_wait_s(rate_rps: float, service_s: float) -> float:
    """M/M/1: ``rho * service / (1 - rho)``."""
    rho = utilisation(rate_rps, service_s)
    return rho * service_s / (1 - rho) if rho < 1 else inf


def erlang_c(offered_load: float, num_servers: int) -> float:
    """The probability that an arrival has to wait in M/M/c (Erlang C); ``offered_load`` = rate * service.

    By the recursion of Erlang B, which stays finite where factorials would not:
    ``B(k) = a B(k-1) / (k + a B(k-1))``, ``C = B(c) / (1 - rho (1 - B(c)))``.
    """
    rho = offered_load / num_servers
    if rho >= 1:
        return 1.0
    blocking = 1.0
    for k in range(1, num_servers + 1):
        blocking = offered_load * blocking / (k + offered_load * blocking)
    return blocking / (1 - rho * (1 - blocking))


def mmc_wait_s(rate_rps: float, service_s: float, num_servers: int) -> float:
    """M/M/c, one queue for all servers: ``C(c, a) * service / (c (1 - rho))``."""
    rho = utilisation(rate_rps, service_s, num_servers)
    if rho >= 1:
        return inf
    return erlang_c(rate_rps * service_s, num_servers) * service_s / (num_servers * (1 - rho))


def mg1_wait_s(rate_rps: float, service_s: float, service_cv2: float) -> float:
    """M/G/1 (Pollaczek and Khinchine): ``rate * E[S^2] / (2 (1 - rho))``, ``E[S^2] = service^2 (1 + cv^2)``."""
    rho = utilisation(rate_rps, service_s)
    return rate_rps * service_s**2 * (1 + service_cv2) / (2 * (1 - rho)) if rho < 1 else inf


def ggc_wait_s(
    rate_rps: float, service_s: float, num_servers: int = 1, service_cv2: float = 1.0, arrival_cv2: float = 1.0
) -> float:
    """G/G/c (Allen and Cunneen): the M/M/c wait times ``(cv_arrival^2 + cv_service^2) / 2``.

    Exact for M/M/c and M/G/1, an approximation elsewhere.
    """
    wait_s = mmc_wait_s(rate_rps, service_s, num_servers)
    return inf if isinf(wait_s) else wait_s * (arrival_cv2 + service_cv2) / 2


def block_wait_s(
    num_requests: int,
    rate_rps: float,
    service_s: float,
    num_servers: int = 1,
    service_cv2: float = 1.0,
    arrival_cv2: float = 1.0,
) -> float:
    """Mean wait over a block of ``num_requests`` that finds the queue empty: the lesser of G/G/c and Spitzer's sum.

    Spitzer's identity: the k-th wait has mean ``sum_{j<k} E[max(0, S_j)] / j``, where S_j sums j times service less
    interarrival time; S_j is taken as normal, and c servers as one that is c times as fast. Finite at any load.
    """
    if rate_rps == 0:
        return 0.0
    drift = service_s / num_servers - 1 / rate_rps
    spread = sqrt(service_cv2 * (service_s / num_servers) ** 2 + arrival_cv2 / rate_rps**2)
    wait_s, total_s = 0.0, 0.0
    for j in range(1, num_requests):  # the first request finds nobody
        wait_s += _mean_above_zero(j * drift, sqrt(j) * spread) / j
        total_s += wait_s
    return min(ggc_wait_s(rate_rps, service_s, num_servers, service_cv2, arrival_cv2), total_s / max(num_requests, 1))


def _mean_above_zero(mean: float, deviation: float) -> float:
    """``E[max(0, X)]`` of a normal X: ``deviation * phi(z) + mean * Phi(z)``, ``z = mean / deviation``."""
    if deviation == 0:
        return max(0.0, mean)
    z = mean / deviation
    density = exp(-z * z / 2) / sqrt(2 * pi)
    return deviation * density + mean * (1 + erf(z / sqrt(2))) / 2
