/* The message that tells a step's tokens, sent without Python, and a look whether another has come: worker/line.py and
 * worker/mailbox.py have the same in Python. MPI's functions are given by address; they take handles by address, so that
 * nothing here knows what a handle is.
 */

/* A receive that is always posted. */
struct inbox {
    int (*test)(void *request, int *come, void *status);
    void *request, *status;
    int come, error; /* a message has come; what MPI said instead */
};

/* A message that is sent again and again, in one of its copies, each with a request of its own. */
struct line {
    struct inbox *inbox;
    int (*start)(void *request);
    const char *page;
    char **copies;
    void **requests;
    int64_t num_bytes, num_copies;
    int64_t num_sent;
    int error; /* of the last send */
};

/* Send the message as it is now; one more must be free. Returns 1 where somebody has to see to something, else 0. */
int xpyd_tell(struct line *l, int looks)
{
    const int64_t copy = l->num_sent++ % l->num_copies;
    memcpy(l->copies[copy], l->page, (size_t)l->num_bytes);
    l->error = l->start(l->requests[copy]);
    if (looks) l->inbox->error = l->inbox->test(l->inbox->request, &l->inbox->come, l->inbox->status);
    return l->error || (looks && (l->inbox->error || l->inbox->come));
}
