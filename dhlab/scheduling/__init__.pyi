from .job import Job as Job
from .job import Jobs as Jobs
from .job import jobs as jobs
from .submitting import submit as submit
